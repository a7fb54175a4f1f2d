"""Switched on and off again and again, the extension leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

bpy = pytest.importorskip("bpy")

from blender_addon import imagining_properties, registration, studio, translations  # noqa: E402


@pytest.fixture
def nothing_left() -> Iterator[None]:
    before = traces()
    yield
    assert traces() == before


def traces() -> set[str]:
    """Everything of ours that Blender knows."""
    found = {name for name in dir(bpy.types) if name.upper().startswith("GAUSSMITH")}
    found |= {owner.__name__ for owner in (bpy.types.Scene, bpy.types.Object) if hasattr(owner, "gaussmith")}
    for name in dir(bpy.app.handlers):
        if isinstance(listed := getattr(bpy.app.handlers, name), list):
            found |= {f"{name} {handler.__name__}" for handler in listed if "blender_addon" in handler.__module__}
    for menu in (bpy.types.TOPBAR_MT_file_import, bpy.types.TOPBAR_MT_file_export):
        found |= {draw.__name__ for draw in menu._dyn_ui_initialize() if "blender_addon" in draw.__module__}
    return found | ({"timer"} if bpy.app.timers.is_registered(studio.timer_tick) else set())


def test_register_and_unregister_twice(nothing_left: None) -> None:
    found = []
    for _ in range(2):
        registration.register()
        found.append(traces())
        registration.unregister()
    assert found[0] == found[1]
    assert {"timer", "Scene", "Object", "GAUSSMITH_PT_main", "GAUSSMITH_OT_generate"} <= found[0]


def test_unregistering_ends_the_backend(nothing_left: None) -> None:
    ended: list[bool] = []
    registration.register()
    studio.current().session.close = lambda: ended.append(True)  # type: ignore[method-assign]
    registration.unregister()
    assert ended == [True]
    with pytest.raises(RuntimeError, match="not registered"):
        studio.current()


def test_registering_twice_is_refused(nothing_left: None) -> None:
    registration.register()
    with pytest.raises((RuntimeError, ValueError)):
        registration.register()
    registration.unregister()


def test_every_operator_has_a_tooltip_and_blenders_naming() -> None:
    for cls in registration.CLASSES:
        name = cls.__name__
        if issubclass(cls, bpy.types.Operator):
            assert name == "GAUSSMITH_OT_" + cls.bl_idname.removeprefix("gaussmith.")
            assert cls.bl_description and not cls.bl_description.endswith("."), name
            assert cls.bl_label[0].isupper()
        elif issubclass(cls, bpy.types.Panel):
            assert "_PT_" in name and cls.bl_category == "Gaussmith"


def test_every_setting_has_a_description(nothing_left: None) -> None:
    registration.register()
    groups = (bpy.types.Scene.gaussmith, bpy.types.Object.gaussmith)
    found = [group.keywords["type"].bl_rna if hasattr(group, "keywords") else group.fixed_type for group in groups]
    for rna in [*found, imagining_properties.GaussmithImagining.bl_rna]:
        for prop in rna.properties:
            if prop.identifier not in ("name", "rna_type"):
                assert prop.description, prop.identifier
    registration.unregister()


def labels() -> set[str]:
    """What Blender will look up: names of buttons, panels, properties and their choices."""
    found = {cls.bl_label for cls in registration.CLASSES if getattr(cls, "bl_label", "")}
    for cls in registration.CLASSES:
        for prop in getattr(cls, "bl_rna", cls).properties if hasattr(cls, "bl_rna") else ():
            found.add(prop.name)
            found |= {item.name for item in getattr(prop, "enum_items_static", ())}
    return found


def test_translations_are_whole_and_of_use(nothing_left: None) -> None:
    registration.register()
    known = labels()
    registration.unregister()
    files = [Path(str(module.__file__)) for module in text_modules()]
    files.append(files[0].parents[1] / "backend" / "downloads.py")  # what it says of its progress is shown as it is
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    for english, others in translations.SENTENCES.items():
        assert len(others) == len(translations.LANGUAGES) and all(others), english
        assert english in known or f'"{english}' in sources or f"'{english}'" in sources, f"nothing shows {english!r}"
    for language in translations.LANGUAGES:
        assert translations.TABLE[language]["Operator", "Generate"] != "Generate"


def text_modules() -> list[Any]:
    from blender_addon import (
        families,
        front_ends,
        generation,
        imagining_operators,
        imagining_panels,
        operators,
        panels,
        placement,
        properties,
        session,
        shelf,
        weights_panel,
    )

    found = [families, front_ends, generation, imagining_operators, imagining_panels, imagining_properties, operators]
    return [*found, panels, placement, properties, session, shelf, studio, weights_panel]
