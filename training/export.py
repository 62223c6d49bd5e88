"""Writes a network as the LiteRT file that a bundle holds. TensorFlow does it, whatever backend trained the weights."""

from __future__ import annotations

import keras


def exported(network: keras.Model) -> bytes:
    """Return a network whose input is one image as a LiteRT file with half-precision weights.

    The names of its outputs are those in the file's signature. Raises RuntimeError unless Keras runs on TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError("Only TensorFlow writes LiteRT files: run this step with KERAS_BACKEND=tensorflow.")
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


def of_one_image(network: keras.Model) -> keras.Model:
    """Return the network with an input of exactly one image, which is what LiteRT plans its memory for."""
    image = keras.Input(batch_shape=(1, *network.input_shape[1:]), name="image")
    return keras.Model(image, network(image, training=False))
