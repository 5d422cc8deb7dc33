"""`python -m medtune_jax <verb>`, the same as `medtune <verb>`."""

from medtune_jax.cli.main import main

if __name__ == "__main__":
    main()
