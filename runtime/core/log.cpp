#include "runtime/core/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

namespace r1::log {

void setup(const std::string& prefix, spdlog::level::level_enum level) {
  auto logger = std::make_shared<spdlog::logger>("r1run", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern(prefix.empty() ? "%^%l%$: %v" : prefix + ": %^%l%$: %v");
  logger->set_level(level);
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace r1::log
