"""A store that several machines share: artifacts by key, their files by content, in an object store or a registry"""
