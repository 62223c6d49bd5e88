"""The networks. Each takes float32 grey 0 to 255; scaling is in the graph."""

from training.networks.published import augmented, published_cnn

__all__ = ["augmented", "published_cnn"]
