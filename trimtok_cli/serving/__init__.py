"""vLLM's OpenAI-compatible server, with pruning inside ([what it leans on](README.md)).

`command_line` says how the server is started, `process` starts and ends it, `plugin` is what vLLM
calls in each of its processes, and `llava` the model that prunes there, by `pruning`.
"""
