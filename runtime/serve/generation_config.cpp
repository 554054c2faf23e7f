#include "runtime/serve/generation_config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"

namespace r1::serve {

namespace {

using Json = nlohmann::json;

std::string shown_value(const Json& j) { return j.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 40); }

/// A number of the file within [least, most]; nothing where the key is missing or null.
std::optional<double> number(const Json& j, const char* key, double least, double most, const std::string& source) {
  const auto it = j.find(key);
  if (it == j.end() || it->is_null()) return {};
  const double x = it->is_number() ? it->get<double>() : std::nan("");
  if (!(x >= least && x <= most))
    throw DataError("{}: {} is {}, expected a number from {} to {}", source, key, shown_value(*it), least, most);
  return x;
}

std::vector<int64_t> ids(const Json& j, const char* key, const std::string& source) {
  std::vector<int64_t> out;
  const auto it = j.find(key);
  if (it == j.end() || it->is_null()) return out;
  for (const Json& id : it->is_array() ? *it : Json::array({*it})) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
      throw DataError("{}: {} is {}, expected a token id or a list of them", source, key, shown_value(*it));
    out.push_back(id.get<int64_t>());
  }
  return out;
}

}  // namespace

GenerationConfig parse_generation_config(std::string_view json, const std::string& source) {
  const Json j = Json::parse(json, nullptr, false);
  if (!j.is_object()) throw DataError("{}: not a JSON object", source);
  GenerationConfig c;
  if (const auto it = j.find("do_sample"); it != j.end() && !it->is_null()) {
    if (!it->is_boolean()) throw DataError("{}: do_sample is {}, expected true or false", source, shown_value(*it));
    c.do_sample = it->get<bool>();
  }
  c.temperature = number(j, "temperature", 0, 1e6, source);
  c.top_p = number(j, "top_p", 0, 1, source);
  c.min_p = number(j, "min_p", 0, 1, source);
  c.repetition_penalty = number(j, "repetition_penalty", 1e-6, 1e6, source);
  if (const auto k = number(j, "top_k", -1, 1e9, source)) {
    if (*k != std::floor(*k)) throw DataError("{}: top_k is {}, expected a whole number", source, *k);
    c.top_k = std::max<int64_t>(0, static_cast<int64_t>(*k));
  }
  c.eos_ids = ids(j, "eos_token_id", source);
  return c;
}

SamplingParams resolve_sampling(const GenerationConfig& file, const SamplingWishes& wishes, std::string* shown) {
  std::string line;
  const auto choose = [&](const char* name, const auto& wish, const auto& in_file, bool use_file, auto fallback,
                          auto off) {
    auto value = fallback;
    const char* origin = "";
    if (wish)
      value = static_cast<decltype(value)>(*wish), origin = " (given)";
    else if (use_file && in_file)
      value = static_cast<decltype(value)>(*in_file), origin = " (generation_config.json)";
    const std::string text = value == off ? std::string("off") : fmt::format("{}", value);
    if (*origin != '\0' || value != off) line += fmt::format("{}{} {}{}", line.empty() ? "" : ", ", name, text, origin);
    return value;
  };
  const bool file_samples = file.do_sample.value_or(false);
  const bool narrowed = wishes.top_k || wishes.top_p || wishes.min_p;
  SamplingParams p{.seed = wishes.seed};
  p.temperature = wishes.temperature ? *wishes.temperature
                  : file_samples     ? file.temperature.value_or(1)
                  : narrowed         ? 1
                                     : 0;
  p.repetition_penalty =
      choose("repetition-penalty", wishes.repetition_penalty, file.repetition_penalty, true, 1.0, 1.0);
  if (p.greedy()) {
    line = "greedy" +
           std::string(wishes.temperature ? " (given)"
                       : file.do_sample   ? " (generation_config.json)"
                                          : "") +
           (line.empty() ? "" : ", ") + line;
  } else {
    choose("temperature", wishes.temperature, file.temperature, file_samples, p.temperature, 0.0);
    p.top_k = choose("top-k", wishes.top_k, file.top_k, file_samples, int64_t{0}, int64_t{0});
    p.top_p = choose("top-p", wishes.top_p, file.top_p, file_samples, 1.0, 1.0);
    p.min_p = choose("min-p", wishes.min_p, file.min_p, file_samples, 0.0, 0.0);
    if (p.top_p <= 0) p.top_p = 1e-9;  // a file's 0 means the most likely token alone
    line += fmt::format(", seed {}", p.seed);
  }
  if (shown != nullptr) *shown = line;
  return p;
}

}  // namespace r1::serve
