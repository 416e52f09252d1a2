//! What is confidential is so in an entity as well: a column of [`Confidential`] is read and bound like the value in it, and printed as
//! `***`.

use sea_orm::{
    ColIdx, QueryResult, TryGetError, TryGetable, Value,
    sea_query::{ArrayType, ColumnType, Nullable, ValueType, ValueTypeErr},
};

use crate::domain::confidential::Confidential;

impl<T: Clone + Into<Value>> From<Confidential<T>> for Value {
    fn from(value: Confidential<T>) -> Self {
        value.expose().clone().into()
    }
}

impl<T: TryGetable> TryGetable for Confidential<T> {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        T::try_get_by(row, index).map(Self::new)
    }
}

impl<T: ValueType> ValueType for Confidential<T> {
    fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
        T::try_from(value).map(Self::new)
    }

    fn type_name() -> String {
        T::type_name()
    }

    fn array_type() -> ArrayType {
        T::array_type()
    }

    fn column_type() -> ColumnType {
        T::column_type()
    }
}

impl<T: Nullable> Nullable for Confidential<T> {
    fn null() -> Value {
        T::null()
    }
}
