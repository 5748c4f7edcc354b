"""The forward pass: padded token ids in, one float32 logit a row out.

`base` holds the protocol `LogitModel`, its result `BatchOutput`, and `load_model`, which picks the
backend. `transformers` runs a checkpoint with torch, `unpadded` the BERT family on a CPU without
padding, `packed` its bf16 layers, `onnx` an exported graph. A new backend is a module here and a
branch in `load_model`.
"""
