"""What serving engines share: the settings of one request, the model they are about, and the rows that follow them.

Nothing here imports an engine: `adapt_kernels.vllm` and `adapt_kernels.hf.continuous` bring their rows and logits.
"""
