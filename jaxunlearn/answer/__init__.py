"""From a request to delete pictures to a folder that answers it: `jaxunlearn answer`."""
