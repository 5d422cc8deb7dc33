"""medtune_jax: instruction tuning of biomedical language models in JAX."""

from pathlib import Path

__version__ = "0.1.0"

_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.py").is_file() and (_checkout / "configs").is_dir():
    # In a source checkout configs/ and data_prep/ lie beside the package; setup.py installs them inside it.
    __path__.append(str(_checkout))
