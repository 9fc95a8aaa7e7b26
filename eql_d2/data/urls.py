"""URLs in configs and for weights: what is downloaded stays inside of the cache folder."""

from urllib.parse import urlparse

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import HTTPURLHandler

from eql_d2.errors import InputError


class ContainedHTTPHandler(HTTPURLHandler):
    """iopath's, which joins the URL's path to the cache folder as it is, `..` included."""

    def _get_local_path(self, path, *args, **kwargs):
        if ".." in urlparse(path).path.replace("\\", "/").split("/"):
            raise InputError(
                f"{path!r} has '..' in its path, and would be written outside of the cache folder: remove it"
            )
        return super()._get_local_path(path, *args, **kwargs)


PathManager.register_handler(ContainedHTTPHandler(), allow_override=True)
