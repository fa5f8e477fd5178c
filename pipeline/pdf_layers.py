"""Layers of a PDF (optional content): which are off when the file is opened, and what that hides.

PDFium draws by these rules but for usages, and tells names of layers only.
"""

from typing import Any

import pikepdf

from pipeline.pdf_tree import Id

_HIDDEN = "hidden by PageReel"  # the name of a layer that had none of its own
_MAX_NAME = 100  # letters of a name that is told as it is
_MAX_DEPTH = 32  # of an expression, as PDFium has it


def hidden_names(pdf: pikepdf.Pdf, off: set[Id]) -> frozenset[str]:
    """The names of the layers that are off."""
    if not off:
        return frozenset()
    return frozenset(str(group.get("/Name", "")) for group in pdf.Root.OCProperties.OCGs if is_off(group, off))


def groups_off(properties: Any) -> set[Id]:
    """The layers that are off when the file is opened, by its OCProperties (ISO 32000-2, 8.11.4)."""
    if not _is_dictionary(properties) or not isinstance(properties.get("/OCGs"), pikepdf.Array):
        return set()
    config = properties.get("/D")
    config = config if _is_dictionary(config) else pikepdf.Dictionary()
    on, off = (_ids(config.get(key)) for key in ("/ON", "/OFF"))
    if config.get("/BaseState") == pikepdf.Name.OFF:
        off |= _ids(properties.OCGs) - on
    for usage in _items(config.get("/AS")):
        if at(usage, "/Event") == pikepdf.Name.View:
            groups = [group for group in _items(usage.get("/OCGs")) if _is_dictionary(group)]
            off -= {group.objgen for group in groups if _view_state(group) == pikepdf.Name.ON}
            off |= {group.objgen for group in groups if _view_state(group) == pikepdf.Name.OFF}
    return off & {g.objgen for g in _items(properties.OCGs) if _is_dictionary(g) and _is_for_viewing(g)}


def settle_usages(pdf: pikepdf.Pdf, off: set[Id]) -> bool:
    """Makes PDFium draw the layers as they are: it goes by a layer's own usage, which counts only where the file says
    that it is applied. Whether the file had to be changed.
    """
    properties: Any = pdf.Root.get("/OCProperties")
    if not _is_dictionary(properties) or not isinstance(properties.get("/OCGs"), pikepdf.Array):
        return False
    groups = [group for group in properties.OCGs if _is_dictionary(group)]
    states = [(_view_state(group), is_off(group, off)) for group in groups]
    if all(state is None or (state == pikepdf.Name.OFF) == hidden for state, hidden in states):
        return False
    for group in groups:
        if "/Usage" in group:
            del group["/Usage"]
    properties.D = pikepdf.Dictionary(OFF=pikepdf.Array([group for group in groups if is_off(group, off)]))
    return True


def name_hidden(pdf: pikepdf.Pdf, off: set[Id]) -> bool:
    """Changes the file so that what is hidden is known by the name of its layer alone; whether it had to.

    A layer with the name of one that is on gets another, a membership that hides becomes a layer that is off, and a
    form that is hidden as a whole becomes empty.
    """
    properties, changed = pdf.Root.OCProperties, False
    shown = {str(group.get("/Name", "")) for group in properties.OCGs if not is_off(group, off)}
    for thing in [*pdf.objects, *_written_into_resources(pdf)]:
        if isinstance(thing, pikepdf.Stream):
            layer = thing.get("/OC")
            if thing.get("/Subtype") == pikepdf.Name.Form and (_hides(layer, off) or is_off(layer, off)):
                thing.write(b"")
                changed = True
        elif is_off(thing, off):
            name = str(thing.get("/Name", ""))
            if name in shown or not 0 < len(name) <= _MAX_NAME or not name.isascii():  # PDFium tells others as ""
                thing.Name, changed = pikepdf.String(_HIDDEN), True
        elif _hides(thing, off):
            thing.Type, thing.Name, changed = pikepdf.Name.OCG, pikepdf.String(_HIDDEN), True
            properties.OCGs.append(thing)
            config = properties.get("/D", pikepdf.Dictionary())
            config.OFF = pikepdf.Array([*_items(config.get("/OFF")), thing])
            properties.D = config
            off.add(thing.objgen)
    return changed


def _written_into_resources(pdf: pikepdf.Pdf) -> list[Any]:
    """Memberships that stand in a page's or a form's resources themselves, made objects of their own."""
    memberships = []
    for thing in pdf.objects:
        for owner in (thing, at(thing, "/Resources")):
            properties = at(owner, "/Properties")
            if not _is_dictionary(properties):
                continue
            for name, value in list(properties.items()):
                if at(value, "/Type") == pikepdf.Name.OCMD and not value.is_indirect:
                    properties[name] = pdf.make_indirect(value)
                    memberships.append(properties[name])
    return memberships


def is_off(layer: Any, off: set[Id]) -> bool:
    return _is_dictionary(layer) and layer.is_indirect and layer.objgen in off


def _hides(membership: Any, off: set[Id]) -> bool:
    """Whether a membership of layers hides what it is put on: by its expression, otherwise by its policy."""
    if at(membership, "/Type") != pikepdf.Name.OCMD:
        return False
    if isinstance(expression := membership.get("/VE"), pikepdf.Array):
        return not _shows(expression, off, 0)
    groups = membership.get("/OCGs")
    ids = _ids(groups if isinstance(groups, pikepdf.Array) else [groups])
    are_off = [group in off for group in ids]
    policy = str(membership.get("/P", "/AnyOn"))
    shows = {"/AllOn": not any(are_off), "/AnyOff": any(are_off), "/AllOff": all(are_off)}
    return bool(are_off) and not shows.get(policy, not all(are_off))


def _shows(expression: Any, off: set[Id], depth: int) -> bool:
    """A layer, or [/And ...], [/Or ...], [/Not one] of such."""
    if not isinstance(expression, pikepdf.Array):
        return not is_off(expression, off)
    if depth > _MAX_DEPTH or len(expression) < 2:
        return True
    operator, *operands = (expression[index] for index in range(len(expression)))
    shown = (_shows(operand, off, depth + 1) for operand in operands if operand is not None)
    if operator == pikepdf.Name.Not:
        return not next(shown, False)
    return any(shown) if operator == pikepdf.Name.Or else all(shown)


def _view_state(group: Any) -> Any:
    return at(group, "/Usage", "/View", "/ViewState")


def _is_for_viewing(group: Any) -> bool:
    """A layer of another intent hides nothing from a reader."""
    intent = group.get("/Intent", pikepdf.Name.View)
    intents = list(intent) if isinstance(intent, pikepdf.Array) else [intent]
    return any(name in (pikepdf.Name.View, pikepdf.Name.All) for name in intents)


def at(value: Any, *keys: str) -> Any:
    """What stands in dictionaries, or those of streams, within others; None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, pikepdf.Dictionary | pikepdf.Stream) else None
    return value


def _is_dictionary(value: Any) -> bool:
    return isinstance(value, pikepdf.Dictionary)


def _items(array: Any) -> list[Any]:
    return list(array) if isinstance(array, pikepdf.Array) else []


def _ids(groups: Any) -> set[Id]:
    return {group.objgen for group in (groups if isinstance(groups, list) else _items(groups)) if _is_dictionary(group)}
