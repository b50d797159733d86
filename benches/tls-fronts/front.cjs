// TLS in front of a relay without it, with Node's tls: front.cjs DIRECTORY PORT RELAY_PORT.
const fs = require("fs");
const net = require("net");
const tls = require("tls");

const [directory, port, relayPort] = process.argv.slice(2);
const options = {
  cert: fs.readFileSync(`${directory}/cert.pem`),
  key: fs.readFileSync(`${directory}/key.pem`),
  minVersion: "TLSv1.3",
};
const server = tls.createServer(options, (client) => {
  const relay = net.connect(relayPort, "127.0.0.1");
  client.setNoDelay(true);
  relay.setNoDelay(true);
  client.pipe(relay).pipe(client);
  client.on("error", () => relay.destroy());
  relay.on("error", () => client.destroy());
});
server.listen({ port, host: "127.0.0.1", backlog: 4096 });
