//! Static files from one directory, and from nowhere else.
