"""The steps from a dataset to a grey image: decode, show as a viewer would, find what was exposed, refuse what is none.

`dicom_node/pixels.py` puts them in order; nothing else calls them.
"""
