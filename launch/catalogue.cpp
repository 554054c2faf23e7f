#include "launch/catalogue.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "runtime/core/json.h"
#include "runtime/core/text.h"

// Made from catalogue/*.json at build time (CMakeLists.txt).
extern const unsigned char r1_hardware_catalogue[];
extern const unsigned long r1_hardware_catalogue_bytes;
extern const unsigned char r1_model_catalogue[];
extern const unsigned long r1_model_catalogue_bytes;

namespace r1::launch {
namespace {

using nlohmann::json;

constexpr double kGiB = 1024.0 * 1024.0 * 1024.0;
/// One entry of the catalogue; errors name source and entry.
class Entry {
 public:
  Entry(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw DataError("{}: expected an object", where_);
  }
  [[nodiscard]] bool has(const char* key) const { return object_.contains(key); }
  [[nodiscard]] double number(const char* key, std::optional<double> fallback = {}) const {
    if (!has(key)) {
      if (fallback) return *fallback;
      throw DataError("{}: '{}' is missing", where_, key);
    }
    const json& v = object_[key];
    if (!v.is_number() || !(v.get<double>() >= 0) || v.get<double>() > 1e9)
      throw DataError("{}: '{}' is {}, expected a number from 0 to 1e9", where_, key, v.dump());
    return v.get<double>();
  }
  [[nodiscard]] int whole(const char* key, int fallback) const {
    return static_cast<int>(number(key, static_cast<double>(fallback)));
  }
  [[nodiscard]] std::string text(const char* key, std::optional<std::string> fallback = {}) const {
    if (!has(key)) {
      if (fallback) return *fallback;
      throw DataError("{}: '{}' is missing", where_, key);
    }
    if (!object_[key].is_string()) throw DataError("{}: '{}' is {}, expected a string", where_, key, object_[key].dump());
    return object_[key].get<std::string>();
  }
  [[nodiscard]] std::vector<double> numbers(const char* key, size_t count) const {
    if (!has(key) || !object_[key].is_array() || object_[key].size() != count)
      throw DataError("{}: '{}' must be an array of {} numbers", where_, key, count);
    std::vector<double> out;
    for (const json& v : object_[key]) {
      if (!v.is_number()) throw DataError("{}: '{}' holds {}, expected a number", where_, key, v.dump());
      out.push_back(v.get<double>());
    }
    return out;
  }
  [[nodiscard]] std::vector<std::string> texts(const char* key) const {
    std::vector<std::string> out;
    if (!has(key)) return out;
    if (!object_[key].is_array()) throw DataError("{}: '{}' must be an array of strings", where_, key);
    for (const json& v : object_[key]) {
      if (!v.is_string()) throw DataError("{}: '{}' holds {}, expected a string", where_, key, v.dump());
      out.push_back(v.get<std::string>());
    }
    return out;
  }
  [[nodiscard]] const json& object() const { return object_; }
  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  const json& object_;
  std::string where_;
};

LinkKind read_link(const std::string& name, const Entry& e) {
  LinkKind link{.name = name, .title = e.text("title", name)};
  link.device_bytes_per_s = e.number("gbytes_per_s", 0) * 1e9;
  link.pair_bytes_per_s = e.number("pair_gbytes_per_s", 0) * 1e9;
  if (link.device_bytes_per_s <= 0 && link.pair_bytes_per_s <= 0)
    throw DataError("{}: needs 'gbytes_per_s' or 'pair_gbytes_per_s' above 0", e.where());
  link.share = e.number("share", 1);
  link.latency_s = e.number("latency_us", 10) * 1e-6;
  link.network = e.has("network") && e.object()["network"] == true;
  return link;
}

DeviceKind read_device(const Entry& e, bool gpu) {
  DeviceKind d{.name = e.text("name"), .title = e.text("title"), .gpu = gpu};
  d.sm = gpu ? e.whole("sm", 0) : 0;
  d.cores = e.whole("cores", 0);
  d.numa = e.whole("numa", 1);
  d.memory_bytes = static_cast<int64_t>(e.number("memory_gib") * kGiB);
  d.bytes_per_s = e.number("memory_gbytes_per_s") * 1e9;
  d.bf16_flops = gpu ? e.number("bf16_tflops") * 1e12 : 0;
  d.fp32_flops = e.number("fp32_tflops") * 1e12;
  d.gemm = e.number("gemm");
  const std::vector<double> attention = e.numbers("attention", 2);
  d.attention_forward = attention[0];
  d.attention_backward = attention[1];
  d.copy = e.number("copy");
  d.basis = e.text("basis");
  d.peer = gpu ? e.text("peer") : "shared-memory";
  d.peer_many = e.text("peer_many", d.peer);
  d.network = e.text("network");
  if (gpu) d.host = e.text("host", d.sm >= 90 ? "PCIe5" : d.sm >= 80 ? "PCIe4" : "PCIe3");
  d.most = e.whole("most", 8);
  if (d.gemm <= 0 || d.copy <= 0 || d.fp32_flops <= 0 || d.bytes_per_s <= 0 || d.memory_bytes <= 0)
    throw DataError("{}: gemm, copy, fp32_tflops, memory_gbytes_per_s and memory_gib must be above 0", e.where());
  if (e.has("mig")) {
    for (const auto& [profile, v] : e.object()["mig"].items()) {
      const Entry holder(e.object()["mig"], e.where() + ": mig");
      const std::vector<double> n = holder.numbers(profile.c_str(), 3);
      d.mig[profile] = {n[0], n[1], static_cast<int64_t>(n[2] * kGiB)};
    }
  }
  return d;
}

ShapeKind read_shape(const Entry& e) {
  ShapeKind s{.name = e.text("name"), .title = e.text("title"), .provider = e.text("provider", ""), .device = e.text("device", ""),
              .cpu = e.text("cpu", ""), .network = e.text("network")};
  s.count = e.whole("count", 0);
  s.sockets = e.whole("sockets", 1);
  s.cpu_cores = e.whole("cpu_cores", 0);
  s.numa = e.whole("numa", 0);
  s.nics = std::max(1, e.whole("nics", 1));
  s.memory_bytes = static_cast<int64_t>(e.number("memory_gib") * kGiB);
  if (e.has("usd_per_hour")) s.usd_per_hour = e.number("usd_per_hour");
  s.price_source = e.text("price_source", "");
  return s;
}

template <class T>
void put(std::vector<T>& list, T item) {
  const auto it = std::ranges::find(list, item.name, &T::name);
  if (it == list.end()) list.push_back(std::move(item));
  else *it = std::move(item);
}

std::string_view embedded(const unsigned char* data, unsigned long bytes) {
  return {reinterpret_cast<const char*>(data), bytes};
}

}  // namespace

Catalogue Catalogue::built_in() {
  Catalogue c;
  c.add(embedded(r1_hardware_catalogue, r1_hardware_catalogue_bytes), "built-in catalogue");
  return c;
}

void Catalogue::add(std::string_view text, const std::string& source) {
  const json root = parse_json_object(text, source);
  for (const auto& [key, value] : root.items()) {
    if (key == "about") continue;
    if (key == "links") {
      const Entry links(value, source + ": links");
      for (const auto& [name, link] : value.items()) links_[name] = read_link(name, Entry(link, fmt::format("{}: links: {}", source, name)));
    } else if (key == "comparisons") {
      const Entry all(value, source + ": comparisons");
      for (const auto& [name, list] : value.items()) comparisons_[name] = all.texts(name.c_str());
    } else if (key == "devices" || key == "cpus" || key == "shapes") {
      if (!value.is_array()) throw DataError("{}: '{}' must be an array", source, key);
      for (size_t i = 0; i < value.size(); ++i) {
        const Entry e(value[i], fmt::format("{}: {}[{}]", source, key, i));
        const std::string name = e.text("name");
        for (const std::string& alias : e.texts("aliases")) aliases_[lower(alias)] = name;
        if (key == "shapes") put(shapes_, read_shape(e));
        else if (key == "devices") put(devices_, read_device(e, true));
        else put(cpus_, read_device(e, false));
      }
    } else {
      throw DataError("{}: unknown key '{}' (about, links, devices, cpus, shapes, comparisons are known)", source, key);
    }
  }
  for (const auto* list : {&devices_, &cpus_})
    for (const DeviceKind& d : *list)
      for (const std::string& name : {d.peer, d.peer_many, d.network, d.host})
        if (!name.empty()) static_cast<void>(link(name, fmt::format("{}: {}", source, d.name)));
  for (const ShapeKind& s : shapes_) static_cast<void>(link(s.network, fmt::format("{}: {}", source, s.name)));
}

const LinkKind& Catalogue::link(const std::string& name, const std::string& where) const {
  const auto it = std::ranges::find_if(links_, [&](const auto& l) { return lower(l.first) == lower(name); });
  if (it == links_.end()) {
    std::string known;
    for (const auto& [n, l] : links_) known += (known.empty() ? "" : ", ") + n;
    throw UsageError("{}: no link is called \"{}\"; there are {}", where, name, known);
  }
  return it->second;
}

namespace {

const json& models() {
  static const json root = json::parse(embedded(r1_model_catalogue, r1_model_catalogue_bytes))["models"];
  return root;
}

/// Without organisation, the leading "DeepSeek-" and a trailing slash, in lower case.
std::string plain_name(std::string_view name) {
  std::string n = lower(name);
  while (!n.empty() && n.back() == '/') n.pop_back();
  if (const size_t slash = n.rfind('/'); slash != std::string::npos) n.erase(0, slash + 1);
  if (n.starts_with("deepseek-")) n.erase(0, 9);
  if (n.ends_with("-instruct")) n.resize(n.size() - 9);
  return n;
}

}  // namespace

std::optional<parallel::ModelConfig> model_by_name(std::string_view name) {
  for (const auto& [known, config] : models().items())
    if (plain_name(known) == plain_name(name)) return parallel::parse_model_config(config.dump(), "model catalogue: " + known);
  return std::nullopt;
}

std::vector<std::string> model_names() {
  std::vector<std::string> out;
  for (const auto& [name, config] : models().items()) out.push_back(name);
  return out;
}

}  // namespace r1::launch
