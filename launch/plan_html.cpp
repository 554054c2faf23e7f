// A plan as one self-contained web page.
#include "launch/plan.h"

namespace r1::launch {

std::string plan_html(const PlanReport& r) { return "<pre>" + plan_text(r) + "</pre>" + parallel::gantt_svg(r.schedule, r.simulation); }
std::string comparison_html(const std::vector<PlanReport>& reports) { return "<pre>" + comparison_text(reports) + "</pre>"; }

}  // namespace r1::launch
