"""Where the model comes from: data, network, fit, calibration, evaluation, release.

The only room that knows TensorFlow.
"""
