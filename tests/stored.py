"""What a report or a comparison holds under /results, as bytes."""

import h5py


def stored(path):
    """Return every attribute and every array under /results of a file."""
    found = {}

    def collect(name, member):
        found[name] = {key: repr(value) for key, value in sorted(member.attrs.items()) if "REFERENCE" not in key}
        if isinstance(member, h5py.Dataset):
            content = member[()]
            found[name][""] = repr(content.tolist()) if content.dtype.kind == "O" else content.tobytes()

    with h5py.File(path) as file:
        file["results"].visititems(collect)
    return found
