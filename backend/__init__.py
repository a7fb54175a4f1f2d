"""The reconstruction process: models, fitting, rasterising, meshing. Never imports bpy."""
