// Greedy decoding of one sequence on the CPU against the machine's copy bandwidth, measured in the same run.
//
//   decode [--threads N] [--tokens N] [--prompt N] [--rounds N]
//
// The model: Qwen2's shape with hidden 768, 12 layers, 12 heads on 4 kv heads, ffn 2048, a tied vocabulary of 32,768,
// fp32, random weights. A token reads every matrix once (the tied one as the head; a row of it as the embedding) and
// the keys and values of its context. The limit is what a copy moves, reads and writes counted, between two blocks that
// no cache holds. Rounds of copies and of tokens take turns; the best and the median of each are printed, shares
// compare like with like: on a machine that others use the bests are the figures.
#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cstring>
#include <iostream>
#include <vector>

#include "comm/communicator.h"
#include "runtime/core/host.h"
#include "runtime/device/cpu/thread_pool.h"
#include "runtime/serve/engine.h"

namespace r1 {
namespace {


parallel::ModelConfig shape_of_the_bar() {
  return parallel::parse_model_config(
      R"({"architectures": ["Qwen2ForCausalLM"], "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 32768, "max_position_embeddings": 4096,
          "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.02, "rope_theta": 10000.0})",
      "the built-in shape");
}

struct Times {
  std::vector<double> all;
  [[nodiscard]] double best() const { return *std::min_element(all.begin(), all.end()); }
  [[nodiscard]] double median() const {
    std::vector<double> v = all;
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  }
};

/// Copies a block of 256 MiB on all threads; bytes moved (read and written) are twice that.
class Copy {
 public:
  Copy() : from_(kBytes, 1), to_(kBytes, 2) {}
  static constexpr size_t kBytes = size_t{256} << 20;
  void run(Times& times) {
    const double begin = monotonic_s();
    constexpr int64_t kPart = int64_t{1} << 20;
    parallel_ranges(static_cast<int64_t>(kBytes), kPart, [&](int64_t b, int64_t e) {
      std::memcpy(to_.data() + b, from_.data() + b, static_cast<size_t>(e - b));
    });
    times.all.push_back(monotonic_s() - begin);
  }

 private:
  std::vector<char> from_, to_;
};

struct Options {
  int threads = 2;
  int64_t tokens = 16, prompt = 16, rounds = 8;
};

int run(const Options& o) {
  set_cpu_threads(o.threads);
  const parallel::ModelConfig config = shape_of_the_bar();
  const parallel::ModelSpec spec(config, 1, 1);
  auto world = comm::make_self("world");
  parallel::ProcessGroups groups(*world, {}, false);
  const int64_t context = o.prompt + o.rounds * o.tokens + 1;
  parallel::InferenceShape shape{
      .pass_tokens = std::max<int64_t>(32, o.prompt), .sequences = 1, .context = context, .logit_rows = 1};
  shape.blocks = shape.blocks_of(context);
  const parallel::InferencePlan plan = plan_inference(spec, {}, {}, shape);
  const Stream stream{};
  std::vector<models::StageParameters> params;
  params.emplace_back(spec, 0, 0, parallel::NumericFormat{}, Device{},
                      models::StageParameters::Holds{.training = false}, stream);
  models::initialise(params[0], config, 1, stream);
  models::PagedModel model(spec, plan, groups, params, {}, stream);
  serve::Engine engine(model, groups,
                       {.limits = {.sequences = 1,
                                   .pass_tokens = shape.pass_tokens,
                                   .prefill_chunk = shape.pass_tokens,
                                   .blocks = shape.blocks},
                        .eos_ids = {}});
  serve::Request request{.prompt = std::vector<int32_t>(static_cast<size_t>(o.prompt), 7),
                         .sampling = {},
                         .max_new_tokens = o.rounds * o.tokens};
  static_cast<void>(engine.add(request));

  Copy copy;
  Times copies, tokens;
  copy.run(copies);
  copies.all.clear();  // its pages were mapped on the way
  int64_t made = 0;
  double last = 0;
  engine.run(
      [&](const serve::TokenEvent&) {
        const double t = monotonic_s();
        // The first of a round starts from a cache full of the copy's block, and is not counted.
        if (made % o.tokens > 1) tokens.all.push_back(t - last);
        if (++made % o.tokens == 0) {
          copy.run(copies);
          copy.run(copies);
        }
        last = monotonic_s();
        return false;
      },
      [] {});

  const double weights = 4.0 * static_cast<double>(config.matmul_parameters());
  const double cache = 4.0 * 2.0 * static_cast<double>(config.layers * config.kv_dim()) *
                       static_cast<double>(o.prompt + o.rounds * o.tokens / 2);
  const double moved = weights + cache, copied = 2.0 * static_cast<double>(Copy::kBytes);
  fmt::print("{} threads; a token reads {:.1f} MB of weights and {:.1f} MB of cache\n\n", o.threads, weights * 1e-6,
             cache * 1e-6);
  fmt::print("{:<8} {:>14} {:>14} {:>12} {:>10}\n", "", "copy GB/s", "decode GB/s", "tok/s", "share");
  const auto line = [&](const char* name, double copy_s, double token_s) {
    fmt::print("{:<8} {:>14.2f} {:>14.2f} {:>12.2f} {:>9.1f}%\n", name, copied / copy_s * 1e-9, moved / token_s * 1e-9,
               1 / token_s, 100 * (moved / token_s) / (copied / copy_s));
  };
  line("best", copies.best(), tokens.best());
  line("median", copies.median(), tokens.median());
  groups.close();
  return 0;
}

}  // namespace
}  // namespace r1

int main(int argc, char** argv) {
  namespace po = boost::program_options;
  r1::Options o;
  po::options_description options;
  options.add_options()("threads", po::value(&o.threads))("tokens", po::value(&o.tokens), "of a round")(
      "prompt", po::value(&o.prompt))("rounds", po::value(&o.rounds))("help", "this text");
  try {
    po::variables_map given;
    po::store(po::parse_command_line(argc, argv, options), given);
    po::notify(given);
    if (given.count("help") != 0) return std::cout << options << "\n", 0;
    return r1::run(o);
  } catch (const std::exception& e) {
    std::cerr << "decode: " << e.what() << "\n";
    return 64;
  }
}
