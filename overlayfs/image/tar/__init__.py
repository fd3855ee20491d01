"""Which bytes do the tar of a layer and its compression have?

`reader` (Entry, TarReader) is the one strict parser, `writer` the one serialiser; `compression` opens streams,
`file_data` moves the bytes of sparse files, `tally` counts against the limits. A reader, writer or stream belongs to
one thread at a time; several run at once, as the compression libraries release the GIL.
"""
