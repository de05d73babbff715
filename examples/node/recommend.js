// Asks a gateway for ads: node recommend.js [HOST:PORT] [INTERESTS]. Made from the protos alone; no generated code.
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const [address = "localhost:50050", interests = "trail running"] = process.argv.slice(2);

const definition = protoLoader.loadSync("adcascade/v1/recommend.proto", {
  includeDirs: [path.join(__dirname, "..", "..", "protos")],
  keepCase: true, // p_click, as the contract writes it
  enums: String,
});
const { RecommendService } = grpc.loadPackageDefinition(definition).adcascade.v1;
const client = new RecommendService(address, grpc.credentials.createInsecure());

const request = {
  user: { interests, history: [{ type: "EVENT_TYPE_SEARCH", text: interests }] },
  context: { device: "phone" },
  k: 5,
};
client.Recommend(request, { deadline: Date.now() + 2000 }, (error, answer) => {
  client.close();
  if (error) {
    console.error(`${grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
    return;
  }
  if (answer.degraded) console.error(`in the retrieval order: ${answer.degraded_reason}`);
  for (const { ad, p_click } of answer.recommendations) console.log(`${p_click?.toFixed(3) ?? "-"}  ${ad.title}`);
});
