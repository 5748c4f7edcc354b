"""Find the model, say how it scores, and score the pairs that the store does not hold.

`models.resolve_model` checks a model's folder, `onnx_export.for_backend` gives the backend's copy,
`stage` makes the `ScorerSpec` and ships it, `fill.fill_store` runs the plan, and
`token_lengths.sample_lengths` counts tokens without a model.
"""
