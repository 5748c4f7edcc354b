#!/bin/sh
# Tells Spark which GPUs an executor has: {"name": "gpu", "addresses": ["0", "1"]}
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)
echo "{\"name\": \"gpu\", \"addresses\": [$addresses]}"
