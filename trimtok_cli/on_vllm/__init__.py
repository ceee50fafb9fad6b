"""vLLM as the engine of the language model: the loop, what it is asked, and what it cannot do."""
