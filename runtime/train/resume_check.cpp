#include "runtime/train/resume_check.h"

#include <algorithm>
#include <bit>

#include "runtime/core/error.h"
#include "runtime/core/rng.h"

namespace r1::train {
namespace {

/// Options that change what is computed. Layout, schedule, recomputation and micro-batch do not.
constexpr const char* kOptions[] = {
    "batch",   "seed",    "no-pack", "no-shuffle",   "train-on-prompt", "think-history", "template",
    "parse-special", "too-long", "lr", "warmup-steps", "lr-schedule",    "min-lr",        "beta1",
    "beta2",   "eps",     "weight-decay", "no-decay", "clip",           "dtype",         "state-dtype"};

std::string what(const std::string& name) {
  if (name == "model") return "the model (config.json: sizes, or what it computes)";
  if (name == "tokenizer") return "the tokenizer";
  if (name == "data") return "the content or weights of the files of --data";
  return "--" + name;
}

}  // namespace

const std::vector<std::string>& resume_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list{"model", "tokenizer", "data", "seq-len", "steps"};
    list.insert(list.end(), std::begin(kOptions), std::end(kOptions));
    return list;
  }();
  return names;
}

std::map<std::string, std::string> job_fingerprints(const JobConfig& config, const JobIdentity& identity) {
  std::map<std::string, std::string> f{{"model", identity.model}, {"tokenizer", identity.tokenizer}};
  std::string data;
  for (const data::SourceStats& s : identity.sources) data += fmt::format("{:016x}*{};", s.content, s.weight);
  f["data"] = fmt::format("{:016x}", hash_name(data));
  f["seq-len"] = std::to_string(identity.seq_len);
  for (const char* name : kOptions) f[name] = config.value(name);
  if (config.lr_schedule != "constant") f["steps"] = std::to_string(identity.total_steps);
  return f;
}

std::vector<Difference> differences(const std::map<std::string, std::string>& saved,
                                    const std::map<std::string, std::string>& now) {
  std::vector<Difference> out;
  for (const auto& [name, value] : now)
    if (const auto it = saved.find(name); it != saved.end() && it->second != value)
      out.push_back({.name = name, .saved = it->second, .now = value});
  return out;
}

std::vector<Difference> check_resume(const std::string& checkpoint, const std::map<std::string, std::string>& saved,
                                     const std::map<std::string, std::string>& now,
                                     const std::vector<std::string>& allowed) {
  std::vector<Difference> excused;
  std::string refused, names;
  for (Difference& d : differences(saved, now)) {
    if (std::find(allowed.begin(), allowed.end(), d.name) != allowed.end()) {
      excused.push_back(std::move(d));
      continue;
    }
    refused += fmt::format("\n  {}: {} in the checkpoint, {} now", what(d.name), d.saved.empty() ? "(not given)" : d.saved,
                           d.now.empty() ? "(not given)" : d.now);
    names += (names.empty() ? "" : ",") + d.name;
  }
  if (!refused.empty())
    throw UsageError("--resume {}: this is not the job that wrote it:{}\n(to go on all the same: --resume-allow {}; each name "
                     "excuses one difference)", checkpoint, refused, names);
  return excused;
}

}  // namespace r1::train
