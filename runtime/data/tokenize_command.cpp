#include "runtime/data/tokenize_command.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <istream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <ostream>
#include <span>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/data/formats.h"
#include "runtime/data/input.h"
#include "runtime/data/row_json.h"
#include "runtime/tokenizer/chat.h"
#include "runtime/tokenizer/tokenizer.h"

namespace r1::data {
namespace {

/// The template of the tokenizer's directory, when it is first needed.
class Template {
 public:
  Template(const text::Tokenizer& tokenizer, const TokenizeArgs& args)
      : tokenizer_(tokenizer), args_(args) {}
  [[nodiscard]] text::TemplateKind kind() {
    if (!kind_) {
      std::filesystem::path dir = args_.data.model_dir.empty() ? args_.model : args_.data.model_dir;
      std::error_code ignored;
      if (!std::filesystem::is_directory(dir, ignored))
        dir = dir.has_parent_path() ? dir.parent_path() : ".";
      kind_ = args_.data.template_name.empty() ? text::load_template(dir)
                                               : text::template_by_name(args_.data.template_name);
      text::check_template_tokens(tokenizer_, *kind_);
    }
    return *kind_;
  }

 private:
  const text::Tokenizer& tokenizer_;
  const TokenizeArgs& args_;
  std::optional<text::TemplateKind> kind_;
};

[[nodiscard]] std::vector<int32_t> ids_of(const Json& list, const text::Tokenizer& tokenizer) {
  if (!list.is_array()) throw RowError("`ids` is not a list of integers");
  std::vector<int32_t> ids;
  for (const Json& j : list) {
    const bool ok =
        j.is_number_integer() && !(j.is_number_unsigned() && j.get<uint64_t>() > 0x7fffffff);
    const int64_t id = ok ? j.get<int64_t>() : -1;
    if (id < 0 || id > std::numeric_limits<int32_t>::max())
      throw RowError(fmt::format("`ids` holds {}, which is no token id (0 to {})",
                                 dump(j).substr(0, 40), tokenizer.vocab_size() - 1));
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

[[nodiscard]] Json convert_row(const std::string& line, const TokenizeArgs& args,
                               const text::Tokenizer& tokenizer, Template& chat) {
  const Json row = parse_json(line);
  if (!row.is_object())
    throw RowError("not a JSON object; expected {\"text\"}, {\"messages\"} or {\"ids\"}");
  std::vector<int32_t> ids;
  std::string text;
  if (row.contains("messages")) {
    const ParsedRow parsed = parse_row(Format::kMessages, line);
    text::RenderOptions options;
    options.add_generation_prompt = args.generation_prompt;
    options.parse_special = args.parse_special;
    options.tools = parsed.tools;
    if (const auto it = row.find("add_generation_prompt"); it != row.end() && it->is_boolean())
      options.add_generation_prompt = it->get<bool>();
    text = text::render_text(chat.kind(), parsed.messages, options);
    ids = text::render_ids(tokenizer, chat.kind(), parsed.messages, options);
  } else if (const auto it = row.find("text"); it != row.end()) {
    if (!it->is_string()) throw RowError("`text` is not a string");
    ids = tokenizer.encode(it->get_ref<const std::string&>(),
                           {.add_special = args.add_special, .parse_special = args.parse_special});
    text = text::replace_invalid_utf8(tokenizer.decode(ids, args.skip_special));
  } else if (const auto list = row.find("ids"); list != row.end()) {
    ids = ids_of(*list, tokenizer);
    text = text::replace_invalid_utf8(tokenizer.decode(ids, args.skip_special));
  } else {
    throw RowError("none of `text`, `messages`, `ids` in it");
  }
  return Json{{"ids", ids}, {"text", text}};
}

/// A token's bytes for the eye: control characters spelled out, line ends marked and kept.
[[nodiscard]] std::string visible(std::string_view bytes) {
  std::string out;
  for (const char c : text::replace_invalid_utf8(bytes)) {
    if (c == '\n') {
      out += "\u23ce\n";
    } else if (c == '\t') {
      out += "\u21e5";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else {
      out += c;
    }
  }
  return out;
}

void show_training_row(const EncodedSample& sample, const text::Tokenizer& tokenizer, bool color,
                       std::ostream& out) {
  const auto trained =
      static_cast<int64_t>(std::count(sample.trained.begin() + 1, sample.trained.end(), 1));
  if (!color) {
    std::vector<int32_t> labels(sample.ids.size(), -100);
    for (size_t i = 1; i < labels.size(); ++i)
      if (sample.trained[i] != 0)
        labels[i] = sample.labels.empty() ? sample.ids[i] : sample.labels[i];
    out << dump(Json{{"ids", sample.ids},
                     {"labels", labels},
                     {"text", text::replace_invalid_utf8(tokenizer.decode(sample.ids))},
                     {"trained_tokens", trained}})
        << '\n';
    return;
  }
  // Trained green, context grey; neighbouring tokens differ in brightness. Tokens that share a
  // character (bytes of one UTF-8 sequence) are shown together.
  bool bright = false;
  for (size_t i = 0; i < sample.ids.size();) {
    size_t end = i + 1;
    std::string bytes = tokenizer.token_bytes(sample.ids[i]);
    while (end < sample.ids.size() && sample.trained[end] == sample.trained[i] &&
           text::replace_invalid_utf8(bytes) != bytes && end - i < 4)
      bytes += tokenizer.token_bytes(sample.ids[end++]);
    const bool target = sample.trained[i] != 0 && i > 0;
    out << (target ? (bright ? "\x1b[92m" : "\x1b[32m") : (bright ? "\x1b[37m" : "\x1b[90m"))
        << visible(bytes) << "\x1b[0m";
    bright = !bright;
    i = end;
  }
  out << fmt::format("\n\x1b[2m[{} tokens, {} trained]\x1b[0m\n\n", sample.ids.size(), trained);
}

[[nodiscard]] int64_t characters(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

void count_text(const std::string& content, const TokenizeArgs& args,
                const text::Tokenizer& tokenizer, std::ostream& out) {
  const auto ids = tokenizer.encode(
      content, {.add_special = args.add_special, .parse_special = args.parse_special});
  const auto lines = std::count(content.begin(), content.end(), '\n') +
                     (!content.empty() && content.back() != '\n' ? 1 : 0);
  out << fmt::format(
      "{} bytes, {} characters, {} lines, {} tokens ({:.2f} bytes a token)\n", content.size(),
      characters(content), lines, ids.size(),
      ids.empty() ? 0.0 : static_cast<double>(content.size()) / static_cast<double>(ids.size()));
}

/// Written as it comes, so that a program at the other end of a pipe can wait for each answer.
/// False when the other end has left, as `head` does; throws StorageError when the output takes no
/// more for another reason.
bool deliver(std::ostream& out) {
  errno = 0;
  if (out.flush()) return true;
  if (errno == EPIPE) return false;
  throw StorageError("the output cannot be written: {}",
                     errno != 0 ? std::strerror(errno) : "unknown reason");
}

/// --train: rows of any format, shown as training sees them.
class TrainingView {
 public:
  TrainingView(const TokenizeArgs& args, const text::Tokenizer& tokenizer, std::ostream& out)
      : args_(args), tokenizer_(tokenizer), chat_(tokenizer, args), out_(out) {
    format_ = format_by_name(args.data.format);
    if (!format_ && args.data.format != "auto")
      throw UsageError("--format {}: not a format of rows", args.data.format);
    settings_.tokenizer = &tokenizer;
    settings_.think_history =
        args.data.think_history == "all" ? text::ThinkHistory::kAll : text::ThinkHistory::kLast;
    settings_.train_on_prompt = args.data.train_on_prompt;
    settings_.parse_special = args.parse_special;
    settings_.end_id = end_of_text_id(args.data.model_dir, tokenizer);
  }
  /// A JSON row, or a line of text where the format is text and the line is no JSON. False: nobody
  /// reads what is shown. Throws RowError.
  [[nodiscard]] bool show(std::string_view row, bool plain_text) {
    EncodedSample sample;
    if (plain_text) {
      sample = encode_text(row, settings_);
    } else {
      std::string why;
      const auto format = format_ ? format_ : detect_format(row, &why);
      if (!format) throw RowError(why);
      const ParsedRow parsed = parse_row(*format, row);
      if (parsed.kind == ParsedRow::Kind::kConversation) settings_.chat_template = chat_.kind();
      sample = encode_row(parsed, settings_);
    }
    if (sample.ids.empty()) throw RowError("no tokens");
    show_training_row(sample, tokenizer_, args_.color, out_);
    return deliver(out_);
  }
  [[nodiscard]] bool text_lines() const { return format_ == Format::kText; }
  /// All rows of a file. False: as above.
  [[nodiscard]] bool show_file(const std::filesystem::path& path) {
    using Text = RecordReader::Text;
    RecordReader reader(InputFile(path), text_lines() ? Text::kYes
                                         : format_    ? Text::kNo
                                                      : Text::kByName);
    RecordBatch batch;
    while (reader.next(batch, size_t{256} << 10)) {
      for (const RecordBatch::Record& record : batch.records) {
        try {
          if (record.too_large) throw RowError("longer than a row may be");
          if (!show(batch.text(record), reader.layout() == Layout::kTextLines)) return false;
        } catch (const RowError& e) {
          throw DataError("{}:{}: {}", path.string(), record.line, e.what());
        }
      }
    }
    return true;
  }

 private:
  const TokenizeArgs& args_;
  const text::Tokenizer& tokenizer_;
  Template chat_;
  std::ostream& out_;
  EncodeSettings settings_;
  std::optional<Format> format_;
};

void show_training_lines(TrainingView& view, std::istream& in) {
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      if (!view.show(line, view.text_lines() && line[0] != '{')) return;
    } catch (const RowError& e) {
      throw DataError("standard input:{}: {}", number, e.what());
    }
  }
  if (in.bad()) throw DataError("standard input cannot be read");
}

}  // namespace

void run_tokenize(const TokenizeArgs& args, std::istream& in, std::ostream& out) {
  if (args.input != "auto" && args.input != "json" && args.input != "text")
    throw UsageError("--input {}: allowed is auto, json or text", args.input);
  if (args.model.empty())
    throw UsageError("tokenize needs --model DIR or --model FILE/tokenizer.json");
  const text::Tokenizer tokenizer = text::Tokenizer::load(args.model);
  if (args.stats) {
    DataOptions options = args.data;
    if (options.too_long == "error")
      options.too_long = "truncate";  // describe them, do not stop at them
    const Dataset dataset = Dataset::open(options, tokenizer);
    print_dataset_stats(dataset, options, args.json, out);
    static_cast<void>(deliver(out));
    return;
  }

  if (args.train) {
    TrainingView view(args, tokenizer, out);
    for (const DataSource& source : args.data.sources)
      if (!view.show_file(source.path)) return;
    if (args.data.sources.empty()) show_training_lines(view, in);
    return;
  }
  Template chat(tokenizer, args);
  std::string line;
  int64_t number = 0;
  bool as_json = args.input == "json";
  bool known = args.input != "auto";
  std::string content;  // plain text
  while (std::getline(in, line)) {
    ++number;
    const size_t first = line.find_first_not_of(" \t\r");
    if (!known && first != std::string::npos) {
      as_json = line[first] == '{';
      known = true;
    }
    if (!as_json) {
      content += line;
      if (!in.eof()) content += '\n';
      continue;
    }
    if (first == std::string::npos) continue;
    try {
      out << dump(convert_row(line, args, tokenizer, chat)) << '\n';
    } catch (const RowError& e) {
      throw DataError("standard input:{}: {}", number, e.what());
    }
    if (!deliver(out)) return;
  }
  if (!as_json) count_text(content, args, tokenizer, out);
  static_cast<void>(deliver(out));
  if (in.bad()) throw DataError("standard input cannot be read");
}

}  // namespace r1::data
