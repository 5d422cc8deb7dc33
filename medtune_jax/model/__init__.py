"""The Llama model as pure functions of parameters and tokens."""
