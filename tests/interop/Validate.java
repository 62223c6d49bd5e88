import com.pixelmed.validate.DicomSRValidator;

/** PixelMed's validator for several files: its own main takes one, and loads its rules anew for each. */
class Validate {
    public static void main(String[] files) throws Exception {
        DicomSRValidator validator = new DicomSRValidator();
        for (String file : files) {
            System.out.println("FILE " + file);
            System.out.println(validator.validate(file));
        }
    }
}
