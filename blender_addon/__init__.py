"""Gaussmith inside Blender. Importing it touches nothing, so `blender_addon.protocol` loads without Blender."""


def register() -> None:
    """Called by Blender when the extension is switched on."""
    from . import registration

    registration.register()


def unregister() -> None:
    """Called by Blender when the extension is switched off; undoes all that `register` did."""
    from . import registration

    registration.unregister()
