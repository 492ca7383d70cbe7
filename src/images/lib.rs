//! Images: references, registries, pull, content, unpack.
