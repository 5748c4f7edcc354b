#!/bin/sh
# Tells Spark which GPUs an executor has, by UUID: {"name": "gpu", "addresses": ["GPU-5f..."]}
# Numbers would mean different GPUs to nvidia-smi and to CUDA. Of a GPU that is cut into MIG slices
# these are listed in its place.
nvidia-smi -L | sed -n 's/.*UUID: \([^)]*\)).*/\1/p' | awk '
  /^MIG/ && last ~ /^GPU/ { count-- }
  { found[++count] = last = $1 }
  END {
    printf "{\"name\": \"gpu\", \"addresses\": ["
    for (i = 1; i <= count; i++) printf "%s\"%s\"", (i > 1 ? ", " : ""), found[i]
    print "]}"
  }'
