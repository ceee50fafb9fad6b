"""vLLM's OpenAI-compatible server, with pruning inside; README.md says on what of vLLM it leans.

`command_line` says how the server is started, `template` what its chats look like, `process` starts
and ends it, `plugin` is what vLLM calls in each of its processes, and `llava` the model that prunes
there, by `pruning`.
"""
