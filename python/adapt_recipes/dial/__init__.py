"""The page of `adapt dial`: a model's thinking turned up and down by hand.

`setting` is what the controls say, `thought` tells a thought from the answer, `served` holds the model, `reply` streams
an answer, `points` measures the frontier, `session` keeps users apart, `drawing` makes HTML; the others are Gradio's.
"""
