"""HTTP: parse, authenticate, call one verb of the `Broker`, render. No decision is made here.

`app.create_app` assembles it and refuses to boot if a route has no row in the guard table (`guards`).
"""
