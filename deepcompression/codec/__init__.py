"""A ``.dcz`` file: named arrays to bytes and back, bit for bit. numpy alone is needed."""
