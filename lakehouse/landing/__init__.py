"""Landing: an organization's share of a window becomes exactly one Iceberg snapshot.

Files are staged in the table's own folder, where nothing refers to them; one commit then adds them, writes
the window's id into the snapshot's summary and the cursor into a table property. Before every attempt the
table is read again: if its cursor is not that of the last landed window before this one, nothing is
committed. A share above the cap on partitions lands in numbered parts, each fenced the same way; the cursor
advances with the last. An empty share writes nothing.
"""
