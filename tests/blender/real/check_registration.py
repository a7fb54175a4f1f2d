"""Runs inside Blender: switches the installed extension off and on twice and looks for what is left behind.

blender -b --python-exit-code 1 -P check_registration.py
"""

import bpy

PACKAGE = next(name for name in bpy.context.preferences.addons.keys() if name.endswith(".gaussmith"))


def traces() -> set[str]:
    """Everything of ours that Blender knows."""
    classes = {name for name in dir(bpy.types) if name.upper().startswith("GAUSSMITH")}
    owners = {
        f"{owner.__name__}.gaussmith" for owner in (bpy.types.Scene, bpy.types.Object) if hasattr(owner, "gaussmith")
    }
    handlers = {
        f"{name}: {handler.__module__}"
        for name in dir(bpy.app.handlers)
        if isinstance(getattr(bpy.app.handlers, name), list)
        for handler in getattr(bpy.app.handlers, name)
        if "gaussmith" in handler.__module__
    }
    menus = {
        f"{menu.__name__}: {draw.__module__}"
        for menu in (bpy.types.TOPBAR_MT_file_import, bpy.types.TOPBAR_MT_file_export)
        for draw in menu._dyn_ui_initialize()
        if "gaussmith" in draw.__module__
    }
    return classes | owners | handlers | menus


with_extension = traces()
assert len(with_extension) > 20, with_extension
for _ in range(2):
    bpy.ops.preferences.addon_disable(module=PACKAGE)
    assert not traces(), f"left behind: {traces()}"
    bpy.ops.preferences.addon_enable(module=PACKAGE)
    assert traces() == with_extension, f"missing: {with_extension - traces()}; new: {traces() - with_extension}"
