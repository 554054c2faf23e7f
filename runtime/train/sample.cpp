#include "runtime/train/sample.h"

#include <algorithm>

#include "runtime/serve/engine.h"
#include "runtime/train/inference.h"

namespace r1::train {

void print_sample(const RankContext& ctx, Engine& engine, const data::Dataset& dataset,
                  const text::Tokenizer& tokenizer) {
  constexpr int64_t kNewTokens = 96;
  const data::TokenSample sample = dataset.sample(0);
  const auto first_trained = std::find_if(sample.labels.begin(), sample.labels.end(), [](int32_t l) { return l >= 0; });
  serve::Request request{.prompt = {sample.ids.begin(), sample.ids.begin() + (first_trained - sample.labels.begin())},
                         .sampling = {},
                         .max_new_tokens = kNewTokens};
  const auto length = static_cast<int64_t>(request.prompt.size());
  say(ctx, fmt::format("\nA greedy answer from the weights in memory:\n{}", tokenizer.decode(request.prompt)));
  if (length == 0) return;

  const Device device = engine.stream().device;
  parallel::InferenceShape shape{.pass_tokens = std::max<int64_t>(length, 32),
                                 .sequences = 1,
                                 .context = length + kNewTokens,
                                 .logit_rows = 1,
                                 .dtype = engine.plan().format.weights};
  shape.blocks = shape.blocks_of(shape.context);
  fit_attention(shape, device.kind, engine.spec());
  const parallel::MeshShape mesh = engine.groups().mesh();
  const parallel::InferencePlan plan = plan_inference(engine.spec(), mesh, engine.groups().coord(), shape);
  engine.finish_update();
  models::PagedModel model(engine.spec(), plan, engine.groups(), engine.model().parameters(), device, engine.stream());
  std::vector<int32_t> eos;
  for (const int64_t id : engine.spec().config().eos_ids) eos.push_back(static_cast<int32_t>(id));
  serve::Engine generator(model, engine.groups(),
                          {.limits = {.sequences = 1,
                                      .pass_tokens = shape.pass_tokens,
                                      .prefill_chunk = shape.pass_tokens,
                                      .block_size = shape.block_size,
                                      .blocks = shape.blocks,
                                      .depth = mesh.pp},
                           .eos_ids = std::move(eos)});
  static_cast<void>(generator.add(std::move(request)));
  text::StreamDecoder decoder(tokenizer, true);
  const auto show = [&](const serve::TokenEvent& e) {
    if (ctx.first()) {
      fmt::print("{}", decoder.push(e.token));
      std::fflush(stdout);
    }
    return false;
  };
  generator.run(show, [&] { ctx.check_stop(); });
  say(ctx, decoder.finish());
}

}  // namespace r1::train
