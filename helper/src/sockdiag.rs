//! Which sockets carry our mark, and who holds a port (sock_diag(7)).
