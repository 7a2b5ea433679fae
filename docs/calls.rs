// The application of the chapter on testing; its examples include it.

use event_bus::prelude::*;
use event_bus::testing::*;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "calls.completed", partition_key = call_id)]
pub struct CallCompleted {
    pub call_id: String,
    pub seconds: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(name = "calls.billed", partition_key = call_id)]
pub struct CallBilled {
    pub call_id: String,
    pub minutes: u32,
}

/// Turns completed calls into minutes.
pub struct Billing;

#[async_trait]
impl Handler for Billing {
    const NAME: &'static str = "billing";
    type Event = CallCompleted;
    type Output = u32;

    fn interested(&self, event: &CallCompleted) -> bool {
        event.seconds > 0
    }

    fn options(&self) -> HandlerOptions {
        HandlerOptions::new().max_attempts(3)
    }

    async fn handle(&self, event: CallCompleted, cx: &Context) -> Result<u32, Failure> {
        match &*event.call_id {
            "no such tariff" => Err(Failure::discard("no such tariff")),
            "at the third attempt" if cx.attempt() < 3 => Err(Failure::retry("the price list is locked")),
            _ => Ok(event.seconds.div_ceil(60)),
        }
    }
}

/// The bus as the application builds it, over any backend.
pub fn app_bus(backend: impl event_bus::backend::Backend) -> event_bus::Result<EventBus> {
    EventBus::builder().handler(Billing).backend(backend).build()
}

/// Code under test.
pub async fn complete_call(bus: &EventBus, call_id: &str, seconds: u32) -> event_bus::Result<()> {
    let completed = CallCompleted { call_id: call_id.into(), seconds };
    let billed = CallBilled { call_id: call_id.into(), minutes: seconds.div_ceil(60) };
    bus.publish(&completed).and(&billed).await?;
    Ok(())
}
