"""Which rows are computed on which KV."""
