"""Networks that are defined and trained here, one file an architecture.

A folder of weights whose ``config.json`` has ``"unspool_architecture": "circuits"`` is loaded by the module
``circuits`` of this room: its function ``load(folder, name, dtype, device)`` returns a
:class:`~unspool.core.model.LanguageModel`.
"""
