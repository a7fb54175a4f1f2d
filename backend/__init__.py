"""The reconstruction process: models, fitting, rasterising, meshing. Never imports bpy."""

import os

# Read once by huggingface_hub, whoever imports it first: it would tell the hub what it runs in, and ask who calls it.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
