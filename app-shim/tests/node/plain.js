// A server without signal handling, like most. It listens on PORT, a port or the path
// of a Unix socket.
const http = require('http');

const server = http.createServer((request, response) => {
  setTimeout(() => response.end(`answer to ${request.url}\n`), 50);
});
server.listen(process.env.PORT, process.env.HOSTNAME, () => console.log('listening', JSON.stringify(server.address())));
