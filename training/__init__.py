"""Where the model comes from: data, the network, fitting, calibration, evaluation and release. The only room that knows TensorFlow."""
