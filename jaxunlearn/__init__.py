"""jaxunlearn: machine unlearning for diffusion models in JAX and Flax."""

__version__ = "0.1.0"
