// Socket.IO as it is: a server, or many clients, with the default transports: long polling first, and then an upgrade.
//
//   node socket_io.js server            prints its port
//   node socket_io.js clients URL N     connects N clients, one after the other, and prints what became of them
'use strict';
const http = require('http');

function server() {
  const { Server } = require('socket.io');
  const app = http.createServer((request, response) => {
    response.writeHead(200, { 'content-type': 'application/json', 'x-cookie': request.headers.cookie || '' });
    response.end('{}');
  });
  const port = () => app.address().port;
  new Server(app).on('connection', (socket) => {
    const cookie = () => socket.handshake.headers.cookie || '';
    socket.on('who', (answer) => answer({ port: port(), cookie: cookie() }));
  });
  app.listen(0, '127.0.0.1', () => console.log(port()));
}

// What a browser does with our cookie: the client for Node keeps cookies only on request.
function one(url) {
  const { io } = require('socket.io-client');
  return new Promise((resolve) => {
    const socket = io(url, { withCredentials: true, reconnection: false, forceNew: true, timeout: 10000 });
    const seen = { ports: [], cookies: [], upgraded: false, error: null };
    const end = (error) => {
      seen.error = error ? String(error) : null;
      socket.removeAllListeners();
      socket.disconnect();
      resolve(seen);
    };
    socket.on('connect_error', (error) => end(error));
    socket.on('disconnect', (reason) => end(reason));
    const ask = () => socket.emit('who', (answer) => {
      seen.ports.push(answer.port);
      seen.cookies.push(answer.cookie);
      const upgraded = socket.io.engine.transport.name === 'websocket';
      if (seen.ports.length >= 5 && upgraded) {
        seen.upgraded = true;
        end(null);
      } else if (seen.ports.length >= 400) {
        end('no upgrade');
      } else {
        setTimeout(ask, seen.ports.length < 5 ? 0 : 25);
      }
    });
    socket.on('connect', ask);
  });
}

async function clients(url, count) {
  const seen = [];
  for (let n = 0; n < count; n += 1) {
    seen.push(await one(url));
  }
  console.log(JSON.stringify(seen));
  process.exit(0);
}

if (process.argv[2] === 'server') {
  server();
} else {
  clients(process.argv[3], Number(process.argv[4]));
}
