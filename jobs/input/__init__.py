"""Tables of any source and layout -> one table of (query, candidate) rows, validated.

`read_input` reads files and catalog tables, maps their columns to roles and gives every row a pair
key or a reason why it is rejected; `validate` compares rows with equal ids, and counts. A row is an
impression: what was shown once. A pair is what is scored: a rendered query and a rendered document.
Public names: `InputTable`, `read_input`, `pair_texts`, `ValidatedInput`, `validate`; for ranking
`PASS_THROUGH`, `INTERNAL_PREFIX`, `REJECTED`, `content_hash`; for other tables that hold ids
`read_source`, `READ_ERROR`, `BYTE_ORDER_MARK`, `id_text`, `as_text` and `quoted`.
"""
