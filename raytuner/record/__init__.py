"""What a study writes down, and how nothing of it is lost: bytes that stay, files that know when they are damaged, the
journal, the right to write it, and where all of it lies."""
