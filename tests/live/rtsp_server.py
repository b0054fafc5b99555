"""An RTSP server on 127.0.0.1 for the tests: gst-rtsp-server from Debian, whose `gi` belongs to Debian's Python.

`/usr/bin/python3 rtsp_server.py PORT PASSWORD NAME=FILE...` serves files in real time: H.264 in MP4 from its beginning to every client, VP8
in WebM to all clients the same, as cameras do. PORT 0 chooses one; the port is printed once clients can connect. With a PASSWORD other
than "" the user is `camera`.
"""

import sys

import gi  # pyright: ignore[reportMissingImports]

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402  # pyright: ignore[reportMissingImports]

port, password, *files = sys.argv[1:]
Gst.init(None)
server = GstRtspServer.RTSPServer.new()
server.set_address("127.0.0.1")
server.set_service(port)
if password:
    auth, token = GstRtspServer.RTSPAuth.new(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("camera", password), token)
    server.set_auth(auth)
for item in files:
    name, _, file = item.partition("=")
    factory = GstRtspServer.RTSPMediaFactory.new()
    payloader = "matroskademux ! rtpvp8pay" if file.endswith(".webm") else "qtdemux ! rtph264pay config-interval=-1"
    factory.set_launch(f'( filesrc location="{file}" ! {payloader} name=pay0 )')
    factory.set_shared(file.endswith(".webm"))
    if password:
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_permission_for_role("user", "media.factory.access", True)
        permissions.add_permission_for_role("user", "media.factory.construct", True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory(f"/{name}", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
